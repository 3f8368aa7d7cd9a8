"""An order's workflow that goes on where it stopped, however the program ended.

Each run of this file does the next step of the order, until all are done. Delete orders.db to begin anew.
"""

from __future__ import annotations

import asyncio

from overwinter import Agent, InstanceManager, Signal, SQLiteStore, on

STEPS = ["validate", "charge", "ship"]


class OrderFlow(Agent, name="order.flow"):
    workflow_id: str  # required: a fresh agent needs `initial`
    steps_completed: list[str] = []
    results: dict[str, str] = {}

    @on("workflow.step.complete")
    async def complete(self, step: str, result: str = "ok") -> str | None:
        """Note that a step is done; return the next one. Doing a step twice changes nothing."""
        if step not in STEPS:
            raise ValueError(f"{self.workflow_id} has no step {step!r}")
        if step not in self.steps_completed:
            self.steps_completed.append(step)
            self.results[step] = result
        return self._next()

    def _next(self) -> str | None:
        return next((step for step in STEPS if step not in self.steps_completed), None)

    @property
    def current_step(self) -> str | None:
        return self._next()


async def main() -> None:
    async with InstanceManager(OrderFlow, store=SQLiteStore("orders.db"), idle_timeout=60) as flows:
        # `initial` makes a fresh agent; where one is stored already, that one counts.
        await flows.get("order-456", initial={"workflow_id": "order-456"})

        order = await flows.state("order-456")  # a detached copy, to look at
        print("done so far:", order.steps_completed)

        step = order.current_step
        if step is None:
            print("nothing left to do")
            return
        # The reply means that the step is stored: a crash from here on doesn't undo it.
        following = await flows.call("order-456", Signal("workflow.step.complete", {"step": step}))
        print(f"did {step}, next is {following}")


if __name__ == "__main__":
    asyncio.run(main())
