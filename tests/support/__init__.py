"""What tests of several rooms start from: commands in warm processes, servers that a session shares, the order of the files."""
