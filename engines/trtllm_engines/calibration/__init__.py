"""What numbers a model really holds: ranges measured over a text, the fp8 checkpoint written from them, and the perplexity it then has."""
