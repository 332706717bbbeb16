"""How images are sampled during training; without torch, so that settings are checked at once."""

from dataclasses import dataclass
from typing import get_args

from trainer.types import LogProbForm, SdeKind


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How images are sampled during training.

    With the kind ``ode`` no step is stochastic and the window is empty: for losses that need
    finished images only.
    """

    num_steps: int = 10  # T_train, at least 2
    kind: str = "flow_sde"  # transition of the stochastic steps
    noise_level: float = 0.7  # a; 0.7 for SD3 with flow_sde, 0.8 with cps
    window_size: int = 0  # consecutive stochastic steps; 0: all but the last
    window_range: tuple[int, int] | None = None  # [first, end); None: (0, num_steps - 1)
    guidance_scale: float = 1.0  # 1 needs no second forward pass
    log_prob_form: LogProbForm | None = None  # None: the official form of the kind
    keep_means: bool = False  # store the transition means

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, not {self.num_steps}")
        if self.kind not in get_args(SdeKind):
            known = ", ".join(get_args(SdeKind))
            raise ValueError(f"kind must be one of {known}, not {self.kind!r}")
        if self.kind != "ode" and self.noise_level <= 0:
            raise ValueError("noise_level must be positive: a deterministic policy has no ratio")
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError(f"cps needs a noise level of at most 1, not {self.noise_level}")
        first, end = self.allowed
        if not 0 <= first < end <= self.num_steps:
            raise ValueError(f"window_range {(first, end)} is not inside 0..{self.num_steps}")
        if not 0 <= self.window_size <= end - first:
            raise ValueError(f"window_size {self.window_size} does not fit into {(first, end)}")
        if self.kind == "cps" and end == self.num_steps:
            raise ValueError("the last step of cps is deterministic; end the window before it")

    @property
    def allowed(self) -> tuple[int, int]:
        """First step and end of the range that the window lies in."""
        return self.window_range or (0, self.num_steps - 1)

    @property
    def form(self) -> LogProbForm:
        """The form of log-probability in use; ``ode`` has none and is refused by ``log_prob``."""
        # The official code trains CPS on the bare squared error.
        return self.log_prob_form or ("squared_error" if self.kind == "cps" else "gaussian")
