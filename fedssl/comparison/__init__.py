"""Sets of runs: started or resumed where they are missing, and compared from their folders."""
