"""Libraries made by documented commands, loadable by name: `SkillLibrary.load("half-cheetah-metra")`."""
