"""The page: the only part, with app.py, that imports gradio. Handlers are thin and named after the event."""
