"""Test the claim: how much of the gain from more responses per prompt does the shared prefix make affordable?"""
