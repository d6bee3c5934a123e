"""Code shared by the extensions: document nodes, and numbers and times as text."""
