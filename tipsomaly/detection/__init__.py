"""One picture: from tokens to scores, maps and regions."""
