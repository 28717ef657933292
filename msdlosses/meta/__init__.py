r"""Learning the weights: one look-ahead step of the student, differentiated by the weighting.

Everything here is a gradient through the student's next optimiser step. With the student's
gradient g, the parameters after the step and the held-out loss's gradient v there,

.. math:: g = \nabla_\theta L_\mathrm{inner}(\theta, \Phi), \quad
    \theta' = \mathrm{opt}(\theta, g), \quad v = \nabla L_\mathrm{outer}(\theta'),

the chain rule says

.. math:: \nabla_\Phi L_\mathrm{outer}(\theta'(\Phi))
    = \nabla_\Phi \langle c, g(\Phi) \rangle, \quad
    c = \Bigl(\frac{\partial \theta'}{\partial g}\Bigr)^{\!\top} v .

The optimiser alone gives c: the model has no part in it. What is left is the derivative of the
training loss in the one direction c, which forward-mode differentiation carries through a single
pass of the model, or a second backward pass through its gradient.
"""

from msdlosses.meta._gradient import meta_gradient
from msdlosses.meta._learner import MetaLearner, MetaStep
from msdlosses.meta._statistics import WeightStatistics

__all__ = ["MetaLearner", "MetaStep", "WeightStatistics", "meta_gradient"]
