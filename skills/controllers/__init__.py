"""skills/controllers"""
