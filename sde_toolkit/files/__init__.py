"""Reading files with bounded work, writing them whole, claiming folders. Other rooms know what the contents mean."""
