"""What people look at: pictures, figures and pages of what is in data and what models find."""
