"""Whether a picture shows what its prompt asks for: rules, question answering, recognised text."""
