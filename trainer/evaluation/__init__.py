"""Downstream evaluation by the field's protocol (docs/evaluation.md): face alignment and face parsing."""
