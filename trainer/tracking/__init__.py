"""What a run says while it trains: its journal, MLflow, pictures, the machine."""
