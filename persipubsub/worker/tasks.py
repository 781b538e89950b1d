"""Handle messages in tasks of one event loop."""

import asyncio
from typing import Any, Callable, List

from persipubsub.aio import AsyncSubscriber
from persipubsub.environment import Environment
from persipubsub.message import Reject, Retry
from persipubsub.worker.backoff import Backoff
from persipubsub.worker.crew import Crew
from persipubsub.worker.handlers import Handler
from persipubsub.worker.leases import Job
from persipubsub.worker.plan import Plan


class TaskCrew(Crew):
    """Tasks that handle one message at a time each, in an event loop in a thread of its own."""

    def __init__(self, env: Environment, plan: Plan, handler: Handler, wake: Callable[[], None]) -> None:
        # Before any thread starts, so that an error leaves none, and a stop reaches all tasks.
        subscribers = [env.new_async_subscriber(plan.subscriber, plan.message_type) for _ in range(plan.threads)]
        super().__init__(env, plan, handler, wake)
        self._aborts = False
        self.start(lambda: asyncio.run(self._work_all(subscribers)))

    def give_back(self) -> None:
        """Cancel the tasks, whose blocks then give their messages back."""
        self._aborts = True
        super().give_back()

    async def _work_all(self, subscribers: List[AsyncSubscriber[Any]]) -> None:
        await asyncio.wait([asyncio.create_task(self._task(subscriber)) for subscriber in subscribers])
        await asyncio.to_thread(self.leases.close)  # it may wait for an extension on this loop

    async def _task(self, subscriber: AsyncSubscriber[Any]) -> None:
        try:
            await self._work(subscriber)
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised by join
            self.fail(error)

    async def _work(self, subscriber: AsyncSubscriber[Any]) -> None:
        backoff, loop, task = Backoff(), asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        while not subscriber.stopped:
            job = Job(subscriber.identifier,
                      lambda: asyncio.run_coroutine_threadsafe(subscriber.extend_lease(), loop).result(),
                      lambda: asyncio.run_coroutine_threadsafe(_cancel(task), loop).result())
            try:
                async with subscriber.receive_delivery(timeout=None) as job.delivery:
                    if job.delivery is not None:
                        await self._handle(job)
                backoff.reset()
            except Exception as error:  # pylint: disable=broad-exception-caught  # some are raised again
                pause_s = self.pause_s(job, error, backoff)
                if pause_s:
                    await asyncio.to_thread(self.stopping.wait, pause_s)
            self.count(job)

    async def _handle(self, job: Job) -> None:
        assert job.delivery is not None
        self.leases.add(job)
        try:
            await self.handler.function(self.handler.argument(job.delivery))
        except (Retry, Reject):
            raise
        except Exception as error:
            self.handler_failed(job, error)
            raise
        except asyncio.CancelledError as error:
            if self._aborts:
                raise
            # Of something that the handler awaits: the delivery has failed.
            failure = RuntimeError("The handler awaited something that was cancelled.")
            failure.__cause__ = error
            self.handler_failed(job, failure)
            raise failure from error
        finally:
            self.leases.discard(job)


async def _cancel(task: "asyncio.Task[None]") -> None:
    """Cancel a task, and wait until it has ended."""
    task.cancel()
    await asyncio.wait([task])
