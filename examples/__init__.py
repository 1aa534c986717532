"""Programs that use uotlib as any user would."""
