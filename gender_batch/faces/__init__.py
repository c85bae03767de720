"""Find the faces in a picture, choose whom it shows, and cut them out as the network was taught to see them."""
