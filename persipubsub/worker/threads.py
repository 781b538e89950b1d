"""Handle messages in threads."""

from typing import Any, Callable

from persipubsub.environment import Environment
from persipubsub.message import Reject, Retry
from persipubsub.subscriber import Subscriber
from persipubsub.worker.backoff import Backoff
from persipubsub.worker.crew import Crew
from persipubsub.worker.handlers import Handler
from persipubsub.worker.leases import Job
from persipubsub.worker.plan import Plan


class ThreadCrew(Crew):
    """Threads that handle one message at a time each."""

    def __init__(self, env: Environment, plan: Plan, handler: Handler, wake: Callable[[], None]) -> None:
        # Before any thread starts, so that an error leaves none, and a stop reaches all of them.
        subscribers = [env.new_subscriber(plan.subscriber, plan.message_type) for _ in range(plan.threads)]
        super().__init__(env, plan, handler, wake)
        for subscriber in subscribers:
            self.start(self._work, subscriber)

    def _work(self, subscriber: Subscriber[Any]) -> None:
        backoff = Backoff()
        while not subscriber.stopped:
            receipt = subscriber.receive_delivery(timeout=None)
            job = Job(subscriber.identifier, subscriber.extend_lease, receipt.give_back)
            try:
                with receipt as job.delivery:
                    if job.delivery is not None:
                        self._handle(job)
                backoff.reset()
            except Exception as error:  # pylint: disable=broad-exception-caught  # some are raised again
                self.stopping.wait(self.pause_s(job, error, backoff))
            self.count(job)

    def _handle(self, job: Job) -> None:
        assert job.delivery is not None
        self.leases.add(job)
        try:
            self.handler(job.delivery)
        except (Retry, Reject):
            raise
        except Exception as error:
            self.handler_failed(job, error)
            raise
        finally:
            self.leases.discard(job)
