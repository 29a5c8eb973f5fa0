"""Growth steps as sequences of phases; the method's recipe says which weights each phase starts from."""
