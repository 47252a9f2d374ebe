"""What is wrong with a dataset, case by case and between cases."""
