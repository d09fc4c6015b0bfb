"""The claim, tested: how much of what more responses per prompt teach does the shared prefix make affordable?"""
