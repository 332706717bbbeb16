"""Distance of the policy from the reference, per sample, averaged over elements.

With s the full standard deviation of a step and dt = sigma_next - sigma < 0:
    mean       (m - m_ref)^2 (-dt) / (2 s^2)   the official code, whose deviation lacks sqrt(-dt);
                                               beta 0.04 there (0.01 for PickScore)
    mean_dt    (m - m_ref)^2 / (2 s^2)         the exact Gaussian KL (paper, sec. 4.1); beta 0.004
    velocity   (v - v_ref)^2                   independent of the sampler, defined for any step
For ``cps`` the official deviation already is the full one: there official means ``mean_dt``.
"""

from typing import Literal

from torch import Tensor

from trainer.sde import Transition

KlForm = Literal["mean", "mean_dt", "velocity"]
KL_FORMS: tuple[KlForm, ...] = ("mean", "mean_dt", "velocity")


def kl(
    form: KlForm,
    step: Transition,
    reference: Transition,
    *,
    dt: Tensor | float,
    v: Tensor,
    v_ref: Tensor,
) -> Tensor:
    """Return the divergence per sample, (B,), float32; gradients flow through step and v.

    Args:
        form: One of ``KL_FORMS``, see the module's head.
        step: The policy's transition.
        reference: The reference model's transition from the same latents, same deviation.
        dt: sigma_next - sigma of the step, a number or (B,); negative.
        v: The policy's velocity, (B, ...).
        v_ref: The reference's velocity.

    Raises:
        ValueError: Unknown form, or a form of the means for a deterministic step.
    """
    if form == "velocity":
        return ((v.float() - v_ref.float()) ** 2).flatten(1).mean(1)
    if form not in KL_FORMS:
        raise ValueError(f"unknown KL form {form!r}; one of {', '.join(KL_FORMS)}")
    if bool((step.std <= 0).any()):
        raise ValueError("a deterministic step (std = 0) has no KL of its means; use velocity")
    error = (step.mean - reference.mean) ** 2 / (2 * step.std**2)
    exact = error.flatten(1).mean(1)
    return exact if form == "mean_dt" else exact * -dt
