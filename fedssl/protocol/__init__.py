"""What travels between server and clients: named parts of the model, tasks and results."""
