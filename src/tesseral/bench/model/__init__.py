"""The machine model beside what was measured, and what it predicts where nobody measured."""
