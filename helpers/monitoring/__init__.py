"""What a server has answered, and whether its images and labels are still those it was made for."""
