"""The pure engine: inputs in, effects out. No I/O, no clock, no randomness; time and seeds enter as data.

`engine.Engine.step` is the whole interface. The runtime performs its effects on real ports and the simulator on
faulty ones, so what the simulator proves is what runs.
"""
