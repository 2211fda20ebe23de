"""Figures with their uncertainty."""

import math


def wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),   z = 1.96     [Wilson 1927]

    Args:
        share: p, in [0, 1].
        number: n >= 1, of which it is a share.
    """
    z2 = 1.96**2
    centre = share + z2 / (2 * number)
    half = math.sqrt(z2 * (share * (1 - share) / number + z2 / (4 * number**2)))
    scale = 1 + z2 / number
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
