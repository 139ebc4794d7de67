"""evaluate/trials"""
