"""What users test their own flows with."""

from choreo.testing.clock import VirtualClock
from choreo.testing.testapp import DeadLetter, TestApp, TestFlow

__all__ = ["DeadLetter", "TestApp", "TestFlow", "VirtualClock"]
