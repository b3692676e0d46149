"""Conflict as a monitor of training: does the reward part from the policy while it is optimised?"""
