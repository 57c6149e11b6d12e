"""The load driver: sends a workload to a target when it is due, and records what came back and how late the driver itself was."""
