"""`python -m engine.stageplan`: what is wrong with stage plans, and what one will do with an operator."""
