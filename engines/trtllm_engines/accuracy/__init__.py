"""How good a loaded engine's answers are: a text scored by the steps that serve (`teacher`, `likelihood`), and a task with right answers
(`task`). Whatever the engine does to numbers, in its weights, inputs, cache and kernels, is in the figures."""
