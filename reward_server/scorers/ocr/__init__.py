"""OCR: does the picture show the text that was asked for."""
