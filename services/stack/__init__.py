"""`penstock up`: engines and gateway of one YAML on one machine, started and stopped cleanly."""
