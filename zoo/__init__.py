"""Libraries made by documented commands, loadable by name.

For example `etude.SkillLibrary.load("half-cheetah-metra")`; each card has its command and commit.
"""
