"""What a call of a device worker raises where its process is gone. Apart, as every trial's process imports it."""

from ray.exceptions import ActorDiedError, ActorUnschedulableError, RayActorError

GONE = (ActorDiedError, ActorUnschedulableError)  # it will not come back, as its node will not
LOST = (RayActorError, ActorUnschedulableError)  # the same, or it starts again
