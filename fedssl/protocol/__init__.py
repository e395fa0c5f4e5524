"""Messages between server and clients, and the named parts of the model that they carry."""
