"""What a run hands over: report, model card, tables and sheets of images."""
