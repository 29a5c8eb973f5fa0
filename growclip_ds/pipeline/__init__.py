"""Growth steps as sequences of phases; the recipe of a method defines the initial weights of each phase."""
