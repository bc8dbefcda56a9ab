"""One-shot: choose living neurons to give up, and let those that stay say what the others said."""
