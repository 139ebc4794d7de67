"""Skills: the spaces they live in, the learners that discover them, the library that keeps them."""
