"""User simulators, the policies that adapt to them, and the Long-Term-Satisfaction benchmark."""
