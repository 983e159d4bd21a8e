"""Forward dynamics of a four-joint arm in space by Newton and Euler: the data of Jordan and Jacobs (1994), made anew.

Twelve inputs (4 joint positions, 4 velocities, 4 torques) give 4 joint accelerations. The generator of the paper was
never public; this arm has a turning base and three hinges like a shoulder, an elbow and a rolling wrist.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
GRAVITY = np.array([0.0, 0.0, 9.81])


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Thick rods in a row. Row i: the joint's axis in its own frame, the way to the next joint (metres), kilograms."""

    axis: Array
    link: Array
    mass: Array
    radius: float = 0.08

    def inertia(self, joint: int) -> Array:
        """Give the inertia of a link about its centre: a solid rod along `link`."""
        length = np.linalg.norm(self.link[joint])
        along = self.link[joint] / length
        across = self.mass[joint] * (length**2 / 12 + self.radius**2 / 4)
        lengthwise = self.mass[joint] * self.radius**2 / 2
        return across * np.eye(3) + (lengthwise - across) * np.outer(along, along)


ARM = Arm(
    axis=np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    link=np.array([[0.0, 0.0, 0.3], [0.4, 0.0, 0.0], [0.35, 0.0, 0.0], [0.0, 0.0, 0.2]]),
    mass=np.array([4.0, 3.0, 2.0, 1.0]),
)


def turns(axis: Array, angle: Array) -> Array:
    """Give the rotations (n, 3, 3) by `angle` (n,) about an axis: vectors of the turned frame in the outer one."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def torques(arm: Arm, position: Array, velocity: Array, *, acceleration: Array, gravity: bool = True) -> Array:
    """Give the torques (n, joints) of a motion by the recursive Newton-Euler equations.

    Shapes: position (rad), velocity, acceleration (n, joints).
    """
    n, joints = position.shape
    rotation = [turns(arm.axis[i], position[:, i]) for i in range(joints)]
    spin, turn = np.zeros((n, 3)), np.zeros((n, 3))
    pull = np.tile(GRAVITY if gravity else np.zeros(3), (n, 1))  # gravity is a base that accelerates upwards
    forces, moments = [], []
    for i in range(joints):
        axis, centre = arm.axis[i], arm.link[i] / 2
        spin, turn, pull = (np.einsum("nij,ni->nj", rotation[i], vector) for vector in (spin, turn, pull))
        turn = turn + np.cross(spin, axis * velocity[:, i, None]) + axis * acceleration[:, i, None]
        spin = spin + axis * velocity[:, i, None]
        force = arm.mass[i] * (pull + np.cross(turn, centre) + np.cross(spin, np.cross(spin, centre)))
        inertia = arm.inertia(i)
        forces.append(force)
        moments.append(turn @ inertia + np.cross(spin, spin @ inertia) + np.cross(centre, force))
        pull = pull + np.cross(turn, arm.link[i]) + np.cross(spin, np.cross(spin, arm.link[i]))
    out, force, moment = np.empty((n, joints)), np.zeros((n, 3)), np.zeros((n, 3))
    for i in reversed(range(joints)):
        moment = moment + moments[i] + np.cross(arm.link[i], force)
        force = force + forces[i]
        out[:, i] = moment @ arm.axis[i]
        force, moment = (np.einsum("nij,nj->ni", rotation[i], vector) for vector in (force, moment))
    return out


def mass_matrix(arm: Arm, position: Array) -> Array:
    """Give the matrix (n, joints, joints) that turns accelerations into torques."""
    still = np.zeros_like(position)
    columns = [
        torques(arm, position, still, acceleration=np.tile(unit, (len(position), 1)), gravity=False)
        for unit in np.eye(position.shape[1])
    ]
    return np.stack(columns, axis=2)


def accelerations(arm: Arm, position: Array, velocity: Array, *, torque: Array) -> Array:
    """Solve the forward dynamics: the accelerations (n, joints) that torques bring about."""
    rest = torques(arm, position, velocity, acceleration=np.zeros_like(position))
    return np.linalg.solve(mass_matrix(arm, position), (torque - rest)[:, :, None])[:, :, 0]


def sample(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw inputs (n, 12) and accelerations (n, 4), in rad, rad/s, N m and rad/s^2.

    The ranges are chosen so that a linear model leaves about the published 0.31 of the variance.
    """
    position = rng.uniform(-1.0, 1.0, (n, 4)) * POSITION_RANGE
    velocity = rng.uniform(-1.0, 1.0, (n, 4)) * VELOCITY_RANGE
    torque = rng.uniform(-1.0, 1.0, (n, 4)) * TORQUE_RANGE
    return np.hstack([position, velocity, torque]), accelerations(ARM, position, velocity, torque=torque)


POSITION_RANGE = np.full(4, 1.12)  # rad
VELOCITY_RANGE = np.full(4, 2.0)  # rad/s
TORQUE_RANGE = np.array([10.0, 10.0, 5.0, 0.5])  # N m
