"""What a sweep found, said so that one can believe it: sentences, tables, pictures, one page.

It reads a store and never changes a trial.
"""
