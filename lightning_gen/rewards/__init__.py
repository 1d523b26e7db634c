"""Rewards: what post-training of text-to-image models is paid for, how they are weighed, how advantages follow."""

from typing import TYPE_CHECKING

from lightning_gen._lazy import attach

if TYPE_CHECKING:
    from lightning_gen.rewards.advantages import Advantages as Advantages
    from lightning_gen.rewards.advantages import AdvantageSettings as AdvantageSettings
    from lightning_gen.rewards.advantages import combine_rewards as combine_rewards
    from lightning_gen.rewards.advantages import epoch_advantages as epoch_advantages
    from lightning_gen.rewards.advantages import group_advantages as group_advantages
    from lightning_gen.rewards.advantages import limit_advantages as limit_advantages
    from lightning_gen.rewards.advantages import optimality as optimality
    from lightning_gen.rewards.advantages import training_mask as training_mask
    from lightning_gen.rewards.advantages import whiten as whiten
    from lightning_gen.rewards.cache import RewardCache as RewardCache
    from lightning_gen.rewards.geneval import GenEvalReward as GenEvalReward
    from lightning_gen.rewards.judged import UnifiedReward as UnifiedReward
    from lightning_gen.rewards.lanes import RewardError as RewardError
    from lightning_gen.rewards.preference import AestheticReward as AestheticReward
    from lightning_gen.rewards.preference import CLIPScoreReward as CLIPScoreReward
    from lightning_gen.rewards.preference import HPSv21Reward as HPSv21Reward
    from lightning_gen.rewards.preference import PickScoreReward as PickScoreReward
    from lightning_gen.rewards.remote import RemoteReward as RemoteReward
    from lightning_gen.rewards.remote import RemoteTextReader as RemoteTextReader
    from lightning_gen.rewards.remote import ServerScale as ServerScale
    from lightning_gen.rewards.rewards import RewardEntry as RewardEntry
    from lightning_gen.rewards.rewards import RewardScores as RewardScores
    from lightning_gen.rewards.rewards import RewardSuite as RewardSuite
    from lightning_gen.rewards.text import OCRReward as OCRReward

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "AdvantageSettings": ".advantages",
        "Advantages": ".advantages",
        "combine_rewards": ".advantages",
        "epoch_advantages": ".advantages",
        "group_advantages": ".advantages",
        "limit_advantages": ".advantages",
        "optimality": ".advantages",
        "training_mask": ".advantages",
        "whiten": ".advantages",
        "AestheticReward": ".preference",
        "CLIPScoreReward": ".preference",
        "GenEvalReward": ".geneval",
        "HPSv21Reward": ".preference",
        "OCRReward": ".text",
        "PickScoreReward": ".preference",
        "RemoteReward": ".remote",
        "RemoteTextReader": ".remote",
        "RewardCache": ".cache",
        "RewardEntry": ".rewards",
        "RewardError": ".lanes",
        "RewardScores": ".rewards",
        "RewardSuite": ".rewards",
        "ServerScale": ".remote",
        "UnifiedReward": ".judged",
    },
)
