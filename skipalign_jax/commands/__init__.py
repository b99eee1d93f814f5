"""The work of the commands.

skipalign_jax/NAME.py reads the command line of NAME and imports nothing that loads
slowly, so that --help and mistakes answer at once; commands/NAME.py does the work.
"""
