"""The paper's runs at their own scale: a file for each model, and the protocol they share."""
