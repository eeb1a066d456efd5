"""A page in the browser that draws pictures with Gradio."""
