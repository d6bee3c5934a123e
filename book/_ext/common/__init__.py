"""What several extensions share: nodes of the document, and numbers and times as text."""
