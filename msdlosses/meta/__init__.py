r"""Learned weights: one look-ahead step of the student, differentiated through its weighting.

Everything here is a gradient through the student's next optimizer step. Let g be the gradient of
the student's loss, theta' the parameters after the step, and v the gradient of the held-out loss
there:

.. math:: g = \nabla_\theta L_\mathrm{inner}(\theta, \Phi), \quad
    \theta' = \mathrm{opt}(\theta, g), \quad v = \nabla L_\mathrm{outer}(\theta').

By the chain rule,

.. math:: \nabla_\Phi L_\mathrm{outer}(\theta'(\Phi))
    = \nabla_\Phi \langle c, g(\Phi) \rangle, \quad
    c = \Bigl(\frac{\partial \theta'}{\partial g}\Bigr)^{\!\top} v .

Computing c involves the optimizer but not the model. What remains is the derivative of the training
loss in the single direction c. Forward-mode differentiation carries it through one pass of the
model; a second backward pass takes it from the gradient.
"""

from msdlosses.meta._learner import MetaLearner, MetaStep
from msdlosses.meta._meta_gradient import meta_gradient
from msdlosses.meta._optimizers import register_optimizer

__all__ = ["MetaLearner", "MetaStep", "meta_gradient", "register_optimizer"]
